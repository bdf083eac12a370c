"""A film for Chromium's fake camera: --use-fake-device-for-media-stream --use-file-for-fake-video-capture=FILE.y4m."""

import numpy as np
from PIL import ImageOps


def write_y4m(path, pictures, size=(640, 480), frames=10, rate=10):
    """Write each picture, cut to ``size``, ``frames`` times: YUV 4:2:0 of 8 bits."""
    width, height = size
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F{rate}:1 Ip A1:1 C420jpeg\n".encode())
        for picture in pictures:
            image = ImageOps.fit(picture.convert("RGB"), size).convert("YCbCr")
            luma, *chroma = (np.asarray(band, np.float64) for band in image.split())
            small = [band.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for band in chroma]
            # JPEG's full range to video's, which a camera has.
            planes = [16 + luma * 219 / 255, *(128 + (band - 128) * 224 / 255 for band in small)]
            data = b"".join(np.rint(plane).astype(np.uint8).tobytes() for plane in planes)
            file.write((b"FRAME\n" + data) * frames)
