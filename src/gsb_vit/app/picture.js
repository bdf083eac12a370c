/**
 * The part of a picture that a model reads: left, top, right, bottom in the picture's pixels, as
 * src/gsb_vit/data/preprocess.py has it. Only for drawing: Model.prepare() cuts for itself.
 * @param {{size: number[], resize: string, crop_ratio: number}} preprocessing
 */
export function kept(width, height, { size, resize, crop_ratio: ratio }) {
  if (resize === "squash") return [0, 0, width, height];
  const factor = Math.max(size[0] / height, size[1] / width) / ratio;
  const keptHeight = Math.min(size[0] / factor, height);
  const keptWidth = Math.min(size[1] / factor, width);
  const left = (width - keptWidth) / 2;
  const top = (height - keptHeight) / 2;
  return [left, top, left + keptWidth, top + keptHeight];
}
