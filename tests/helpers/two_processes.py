"""One training step's gradients, alone or as one of several processes (run by test_train_processes.py)."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.data.splits import load_data
from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.build import build_model
from gsb_vit.train.batches import TrainingPictures
from gsb_vit.train.distill import DistillationTask
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.seeds import seed_everything


def main(out: Path) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe("quickstart", ["model.depth=2", "model.tokenizer_channels=[]", "model.global_pool=token"])
    accelerator = Accelerator(cpu=True)
    data = load_data("digits", recipe.data)
    pictures = TrainingPictures(data.train, Preprocessing(size=(16, 16), resize="squash"), recipe.augment)
    seed_everything(3)
    model = build_model("gsb_vit_tiny_patch16_224", recipe.model.arguments(), 10, recipe.stage2.quantization)
    teacher = build_model("gsb_vit_tiny_patch16_224", recipe.model.arguments(), 10, recipe.teacher.quantization)
    initialize_scales(model, next(pictures.epoch((1,), 32))[0])
    task = DistillationTask(model, teacher, recipe.distillation)
    wrapped = accelerator.prepare(task)
    wrapped.train()
    images, labels = next(pictures.epoch((1,), 32, accelerator.process_index, accelerator.num_processes))
    result = wrapped(images, labels, task.lesson(images))
    accelerator.backward(result["loss"])
    loss = accelerator.reduce(result["loss"].detach(), "mean")
    if accelerator.is_main_process:
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        save_file({**gradients, "loss": loss, "processes": torch.tensor(accelerator.num_processes)}, out)
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
