import pytest
from small_models import small

from gsb_vit.bench.cost import summarize
from gsb_vit.export.architecture import architecture_of
from gsb_vit.models.build import build_model
from gsb_vit.models.footprint import footprint
from gsb_vit.quantization import Quantization

WIDTH, HIDDEN, DEPTH = 48, 192, 2


@pytest.mark.parametrize(
    ("switches", "weight_bytes", "scales"),
    [
        ({"activation_bits": 8}, 8, 1),  # rows of 48 bits: one word of 8 bytes
        ({"activation_bits": 8, "weight_bits": 2}, 16, 1),
        ({"activation_bits": 8, "weight_bits": 8}, 48, 1),
        ({"weight_scale": "layer"}, 8, 0),
    ],
)
def test_weights_count_at_their_bits(switches, weight_bytes, scales):
    found, twin = footprint(small(switches)), small(switches)
    words = {name: module for name, module in twin.named_modules() if name.endswith(("qkv", "proj", "fc1", "fc2"))}
    blocks = [module for name, module in words.items() if name.startswith("blocks")]
    rows = DEPTH * (3 * WIDTH + WIDTH + HIDDEN)  # of 48 inputs, and as many of 192 as the width
    wide = {8: 24, 16: 48, 48: 192}[weight_bytes]
    matrices = rows * weight_bytes + DEPTH * WIDTH * wide
    scale_bytes = 4 * (scales * (rows + DEPTH * WIDTH) if scales else 4 * DEPTH)
    edges = twin.patch_embed.proj.weight.numel() + twin.head.weight.numel() + twin.head_dist.weight.numel()
    own = {id(module.weight) for module in blocks}
    own |= {id(module.weight) for module in (twin.patch_embed.proj, twin.head, twin.head_dist)}
    learned = sum(p.numel() for name, p in twin.named_parameters() if "weight_quantizer" in name)
    others = sum(p.numel() for p in twin.parameters() if id(p) not in own) - learned
    assert found.bytes == matrices + scale_bytes + edges + 4 * others
    assert found.parameters == sum(p.numel() for p in twin.parameters())


def test_one_bit_convolutions_count_at_their_bits():
    """Rows of 9·8 and 9·12 bits fill two words each; a scale of an output is learned or not."""
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "tokenizer_channels": [8, 12]}
    eight, one = (
        footprint(build_model("gsb_vit_tiny_patch16_224", args, 3, Quantization(tokenizer_bits=bits))).bytes
        for bits in (8, 1)
    )
    assert eight - one == 12 * (9 * 8 - 16) + 24 * (9 * 12 - 16)


def test_full_precision_is_four_bytes_a_parameter():
    found = footprint(small("full_precision"))
    assert found.bytes == 4 * found.parameters


def test_the_ladder_climbs_and_one_bit_is_near_its_packed_file():
    shape = {"img_size": 64, "embed_dim": 192, "depth": 6}
    ladder = [footprint(small({"weight_bits": bits, "activation_bits": 8}, **shape)).bytes for bits in (1, 2, 8)] + [
        footprint(small("full_precision", **shape)).bytes
    ]
    assert ladder == sorted(ladder) and ladder[-1] > 15 * ladder[0]
    model = small(**shape)
    assert footprint(model).bytes == pytest.approx(summarize(architecture_of(model)).packed.bytes, rel=0.15)
