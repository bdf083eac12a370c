"""The runtime as a WebAssembly module, run in wasmtime: what js/ and the page do, for tests."""

import functools
import struct

import numpy as np
import wasmtime

INFO = struct.Struct("<9i2Ii")  # gsb_vit_info


class WasmError(Exception):
    """The module stopped; the text is that of gsb_vit_error()."""


@functools.cache
def _compiled(module):
    engine = wasmtime.Engine()
    return engine, wasmtime.Module(engine, module)


class WasmModel:
    """One instance with one model; ``module`` is the bytes of the module, ``model`` those of a packed file."""

    def __init__(self, module, model):
        compiled = _compiled(module)
        store = wasmtime.Store(compiled[0])
        instance = wasmtime.Instance(store, compiled[1], [])
        exports = instance.exports(store)
        self._store, self._memory = store, exports["memory"]
        self._exports = exports
        self._call("_initialize")
        place = self._put(model)
        self._model = self._call("gsb_vit_load_bytes", place, len(model), 1, 0)
        self._call("free", place)
        out = self._call("malloc", INFO.size)
        self._call("gsb_vit_get_info", out, self._model)
        info = INFO.unpack(self._get(out, INFO.size))
        self.height, self.width, self.classes, self.tokens, _, self.depth, self.heads, *_ = info
        *_, backend, name, self.attention_groups = info
        self.backend, self.name = self._text(backend), self._text(name)

    def logits(self, pictures):
        """Uint8 (B, H, W, 3) → float32 (B, K)."""
        pixels = self._put(np.ascontiguousarray(pictures).tobytes())
        size = 4 * len(pictures) * self.classes
        out = self._call("malloc", size)
        assert self._call("gsb_vit_predict", self._model, pixels, len(pictures), out) == 0
        found = np.frombuffer(self._get(out, size), np.float32).reshape(len(pictures), self.classes)
        self._call("free", pixels)
        self._call("free", out)
        return found

    def masks(self, picture):
        """Uint8 (H, W, 3) → uint8 (depth, A, heads, N, N)."""
        shape = self.depth, self.attention_groups, self.heads, self.tokens, self.tokens
        pixels, out = self._put(picture.tobytes()), self._call("malloc", int(np.prod(shape)))
        assert self._call("gsb_vit_masks", self._model, pixels, out) == 0
        return np.frombuffer(self._get(out, int(np.prod(shape))), np.uint8).reshape(shape)

    def prepare(self, picture):
        """Uint8 (h, w, channels) → uint8 (H, W, 3)."""
        size = self.height * self.width * 3
        height, width, channels = picture.shape
        pixels, out = self._put(picture.tobytes()), self._call("malloc", size)
        args = (self._model, pixels, width, height, 0, channels, 1, out)
        assert self._call("gsb_vit_prepare_image", *args) == 0
        found = np.frombuffer(self._get(out, size), np.uint8).reshape(self.height, self.width, 3)
        self._call("free", pixels)
        self._call("free", out)
        return found

    def probabilities(self, logits):
        """Float32 (B, K) → float64 (B, K)."""
        place, out = self._put(logits.tobytes()), self._call("malloc", 8 * logits.size)
        assert self._call("gsb_vit_probabilities", self._model, place, len(logits), out) == 0
        return np.frombuffer(self._get(out, 8 * logits.size), np.float64).reshape(logits.shape)

    def is_unknown(self, logits):
        """Float32 (B, K) → bool (B,)."""
        place = self._put(logits.tobytes())
        row = 4 * self.classes
        said = [self._call("gsb_vit_is_unknown", self._model, place + i * row) for i in range(len(logits))]
        assert set(said) <= {0, 1}
        return np.array(said, bool)

    def _call(self, name, *arguments):
        try:
            return self._exports[name](self._store, *arguments)
        except wasmtime.Trap as trap:
            raise WasmError(self._text(self._exports["gsb_vit_error"](self._store))) from trap

    def _put(self, data):
        place = self._call("malloc", len(data))
        self._memory.write(self._store, data, place)
        return place

    def _get(self, place, size):
        return bytes(self._memory.read(self._store, place, place + size))

    def _text(self, place):
        data = self._get(place, 4096)
        return data[: data.index(0)].decode()
