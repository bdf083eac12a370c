// What attention masks say: uint8 (depth, groups, heads, N, N), 1 where token j is in a group of token i.

/** The mask of one token over the patches. */
function row(model, masks, group, block, head, token) {
  const { groups, heads, tokens, prefixTokens } = model;
  const begin = (((block * groups + group) * heads + head) * tokens + token) * tokens;
  return masks.subarray(begin + prefixTokens, begin + tokens);
}

/** The share of the patches in each of a token's masks. */
export function shares(model, masks, block, head, token) {
  return Array.from({ length: model.groups }, (_, group) => {
    const patches = row(model, masks, group, block, head, token);
    return patches.reduce((a, b) => a + b, 0) / patches.length;
  });
}

/** For each patch the last group that it is in, or −1. */
export function strongest(model, masks, block, head, token) {
  const found = new Int8Array(model.tokens - model.prefixTokens).fill(-1);
  for (let group = 0; group < model.groups; ++group) {
    row(model, masks, group, block, head, token).forEach((inside, patch) => {
      if (inside) found[patch] = group;
    });
  }
  return found;
}

/**
 * The block, head and token whose masks say most, as in gsb_vit/report/masks.py: the entropy of "is a patch in the
 * mask?", summed over the masks. A prefix token wins where they are equal.
 */
export function telling(model, masks) {
  let best = { score: -1 };
  for (let block = 0; block < model.depth; ++block) {
    for (let head = 0; head < model.heads; ++head) {
      for (let token = 0; token < model.tokens; ++token) {
        let score = token < model.prefixTokens ? 1e-3 : 0;
        for (const share of shares(model, masks, block, head, token)) score += entropy(share);
        if (score > best.score) best = { score, block, head, token };
      }
    }
  }
  return best;
}

function entropy(share) {
  return share <= 0 || share >= 1 ? 0 : -share * Math.log2(share) - (1 - share) * Math.log2(1 - share);
}

/** A token's name for people. */
export function nameOfToken(model, token) {
  const patch = token - model.prefixTokens;
  if (patch < 0) return ["class token", "distillation token"][token] ?? `prefix token ${token + 1}`;
  const { columns } = model.grid;
  return `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
}
