"""A training recipe: what to train, on how much data, and for how long; read from and written to TOML by recipe_io."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gsb_vit.data.splits import DataRecipe
from gsb_vit.quantization import Quantization

STAGES = ("teacher", "twin", "stage1", "stage2")
# A stage's part of every seed: a stage that is added leaves the others' randomness as it was.
SEED_NUMBERS = {"teacher": 0, "stage1": 1, "stage2": 2, "twin": 3, "views": 4}


@dataclass(frozen=True)
class ModelRecipe:
    """The architecture of the student, and of its full-precision twin. What is left out is the architecture's own.

    ``tokenizer_channels``: a stack of 3 × 3 convolutions of stride 2 in place of the patch embedding, these the output
    channels of all but the last; ``patch_size`` is then its stride, 8 for three convolutions. Empty: patches.
    ``global_pool``: the heads read the class and distillation ``token``, or one head the mean of all patches (``avg``).
    ``reg_tokens``: learned tokens that no head reads (https://arxiv.org/abs/2309.16588).
    ``architecture`` may be any model of timm for the stages in full precision: a rival of the one-bit student
    (``recipes/studies/rivals.toml``). What says the shape of a vision transformer is then idle; ``shown_size`` enlarges
    the pictures inside the model, since convolutional networks end at a 32nd of the side that they are shown.
    """

    architecture: str = "gsb_vit_tiny_patch16_224"
    img_size: int = 64
    patch_size: int = 8
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    tokenizer_channels: tuple[int, ...] = ()
    global_pool: Literal["token", "avg"] = "token"
    reg_tokens: int = 0
    shown_size: int | None = None
    mlp_ratio: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1

    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments for the architecture, without what the recipe leaves to it or it does not take."""
        from gsb_vit.models.arguments import taken_arguments  # imports timm

        return taken_arguments(self.architecture, self._given())

    def idle(self) -> list[str]:
        """Name what the recipe says of the shape and the architecture does not take: only transformers have one."""
        taken = self.arguments()
        return [name for name in self._given() if name not in taken and getattr(self, name)]

    def _given(self) -> dict[str, Any]:
        given = {name: value for name, value in vars(self).items() if name != "architecture" and value is not None}
        given["tokenizer_channels"] = list(self.tokenizer_channels)
        plain = {"tokenizer_channels": [], "global_pool": "token", "reg_tokens": 0}
        return {name: value for name, value in given.items() if plain.get(name) != value}


@dataclass(frozen=True)
class AugmentRecipe:
    """How training pictures are varied.

    ``batch``: one affine warp and one colour change per picture, computed for the whole batch at once (small pictures);
    ``timm``: timm's transforms picture by picture (RandAugment and friends); ``none``: the evaluation pictures.
    """

    policy: Literal["batch", "timm", "none"] = "batch"
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    rotation: float = 15.0
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    random_erasing: float = 0.0
    workers: int = 0


@dataclass(frozen=True)
class DistillationRecipe:
    """Loss of a student: (1 - alpha)·CE(class head, label) + alpha·(distillation head against the teacher).

    ``match`` is function matching (https://arxiv.org/abs/2106.05237): both heads against the teacher's softened logits,
    on the same view of the picture, and no label; it goes with mixed pictures and many epochs. There ``alpha`` is idle.
    ``feature_weight`` times the mean of 1 - cos(student's token, teacher's token) behind every block is added to it,
    where the teacher has the student's width and depth.
    """

    kind: Literal["hard", "soft", "match", "none"] = "hard"
    alpha: float = 0.5
    tau: float = 1.0
    feature_weight: float = 0.0


@dataclass(frozen=True)
class StageRecipe:
    """One stage of training.

    The learning rate is ``learning_rate``, or, where ``learning_rate_batch`` is given, ``learning_rate`` times
    batch_size / learning_rate_batch. ``clip_grad = 0`` does not clip. ``batch_size`` counts the pictures of all
    processes together. ``epochs = 0`` leaves the stage out. ``initialize`` names the model whose weights the stage
    starts from where names and shapes match: the stage before it that ran (``previous``), the teacher, the twin, or
    none (``fresh``). ``scale_learning_rate``: quantizer scales learn at the rate of all parameters (``absolute``, as in
    the released code) or at that rate times their own size when the stage begins (``relative``): AdamW moves a
    parameter by about the learning rate whatever its size, which throws a scale of 0.003 across zero in one step. With
    ``ema_decay`` d > 0 the stage's model is the running average of the weights, w ← d·w + (1 - d)·(weights after each
    step).
    ``patience`` > 0 ends the stage when for so many epochs none was better on the validation pictures. The learning
    rate is then not at its end, where it brings most: give at least a third of the epochs.
    ``mixup`` and ``cutmix`` > 0 mix pairs of training pictures and their labels with a weight from Beta(a, a): whole
    pictures (https://arxiv.org/abs/1710.09412; a = 1 is uniform) or a box of one (https://arxiv.org/abs/1905.04899),
    one of the two at random where both are given. The teacher sees the mixed picture, too.
    """

    epochs: int = 100
    batch_size: int = 50
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    learning_rate_batch: int | None = None
    min_learning_rate: float = 1e-6
    warmup_epochs: int = 5
    weight_decay: float = 0.05
    clip_grad: float = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float = 0.0
    scale_learning_rate: Literal["relative", "absolute"] = "relative"
    select: Literal["best", "last"] = "best"
    patience: int = 0
    initialize: Literal["previous", "teacher", "twin", "fresh"] = "previous"
    quantization: Quantization = field(default_factory=Quantization)

    def peak_learning_rate(self) -> float:
        """The highest learning rate of the schedule."""
        return self.learning_rate * (self.batch_size / self.learning_rate_batch if self.learning_rate_batch else 1.0)


@dataclass(frozen=True)
class TeacherRecipe(StageRecipe):
    """The teacher.

    ``source`` is ``twin`` (the student's architecture in full precision), ``timm:NAME`` of any family, a run or model
    file, or ``none``. A twin or timm model is trained on the same data with this stage's settings; a file is used as it
    is.

    ``weights`` of a timm model: a .safetensors or .pth file, or a name on the Hugging Face hub. ``weights_order`` says
    how their tensors find the model's: by ``name``, or one after the other (``position``). The classifier is always
    new. ``img_size``, ``mean`` and ``std`` are the teacher's own; left out they are those its weights were trained
    with, without ``weights`` the student's. The first ``head_epochs`` of the ``epochs``, or all if they are fewer,
    train the classifier alone, at ``head_learning_rate``. ``freeze_batch_norm`` keeps BatchNorm's statistics; left out
    it holds where there are ``weights``.

    ``precision = "fast"``: the teaching model computes in bfloat16 where the machine has instructions for it, pictures
    channels-last. ``cache_views = N`` draws N views of every picture once and keeps what the teacher says of each in
    the run's folder, or in the folder ``views``, where runs share it if pictures, variation, mixing, teacher and seed
    are equal; epoch e shows view e mod N. 0 draws new views in every epoch.
    """

    source: str = "twin"
    pretrained: bool = False
    weights: str | None = None
    weights_order: Literal["name", "position"] = "name"
    img_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    head_epochs: int = 0
    head_learning_rate: float = 1e-3
    freeze_batch_norm: bool | None = None
    precision: Literal["same", "fast"] = "same"
    cache_views: int = 0
    views: str | None = None
    quantization: Quantization = field(default_factory=Quantization.full_precision)

    @property
    def batch_norm_frozen(self) -> bool:
        """Whether BatchNorm keeps its statistics while the teacher is trained."""
        return self.weights is not None if self.freeze_batch_norm is None else self.freeze_batch_norm


@dataclass(frozen=True)
class TwinRecipe(StageRecipe):
    """The student's full-precision twin between teacher and one-bit stages; ``epochs = 0`` leaves it out.

    It learns from the teacher with a ``distillation`` of its own, and the next stage starts from it. The one-bit stages
    learn from the teacher, or from the twin where it ``teaches``.
    """

    epochs: int = 0
    teaches: bool = False
    distillation: DistillationRecipe = field(default_factory=lambda: DistillationRecipe("match", tau=2.0))
    quantization: Quantization = field(default_factory=Quantization.full_precision)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a run, apart from the data itself."""

    seed: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    threads: int | None = None
    validate_every: int = 1
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    distillation: DistillationRecipe = field(default_factory=DistillationRecipe)
    teacher: TeacherRecipe = field(default_factory=lambda: TeacherRecipe(epochs=200))
    twin: TwinRecipe = field(default_factory=TwinRecipe)
    stage1: StageRecipe = field(default_factory=lambda: StageRecipe(quantization=Quantization.stage1()))
    stage2: StageRecipe = field(default_factory=lambda: StageRecipe(quantization=Quantization.stage2()))

    @property
    def has_teacher(self) -> bool:
        """Whether any model teaches the stages after the teacher's."""
        return self.teacher.source != "none" and (self.teacher.source != "twin" or self.teacher.epochs > 0)

    def learns_from(self, stage: str) -> str | None:
        """The stage whose model teaches ``stage``: ``teacher``, ``twin`` or None."""
        if stage in ("stage1", "stage2") and self.twin.epochs and self.twin.teaches:
            return "twin"
        return "teacher" if stage != "teacher" and self.has_teacher else None

    def distillation_of(self, stage: str) -> DistillationRecipe:
        """How a stage learns from its teacher: the twin has its own way."""
        return self.twin.distillation if stage == "twin" else self.distillation

    def shows_unlabelled(self, stage: str) -> bool:
        """Whether a stage sees ``data.unlabelled``: it learns from a teacher alone, and needs no label."""
        alone = self.distillation_of(stage).kind == "match" and self.learns_from(stage) is not None
        return bool(self.data.unlabelled) and getattr(self, stage).epochs > 0 and alone
