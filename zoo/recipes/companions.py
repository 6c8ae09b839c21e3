"""Runs that another run stands on, such as the image tokenizer of one that draws: made first, and kept beside it.

A task names the folders of the runs that it needs (`TextToImageConfig.companions`). One that is missing or unfinished
is trained there, by the recipe that the folder is called after, on the same data. A copy goes into the folder of the
run that needs it, which so stays complete wherever it is moved.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from zoo.data import Dataset
from zoo.data.clusters import fit_clusters
from zoo.data.pictures import as_pixels, square
from zoo.image_tokens import ImageTokenizer, LearnedTokens, PaletteTokens
from zoo.recipes.run import Run
from zoo.tasks.picture_attributes import Judge, PictureAttributes
from zoo.tasks.text_to_image import TextToImageConfig
from zoo.training.checkpoint import load_params
from zoo.training.hosts import Agreement, is_first, synchronise
from zoo.training.manifest import CHECKPOINTS, leave_out, list_steps
from zoo.training.state import bind_apply

_SAMPLED = 2000
"""Pictures that a palette is made of."""


def make_companions(run: Run, console: Console) -> None:
    """Train, or go on training, what the run needs, and copy it into the run's folder.

    Raises:
        ValueError: a folder that holds no finished run and is called after no recipe.
    """
    agreement = Agreement()  # of several processes, of which the first copies while the others look
    for name, folder in getattr(run.task, "companions", {}).items():
        copy = Path(run.folder) / name
        if agreement.now(is_first() and _is_finished(copy)):
            continue
        if not agreement.now(is_first() and _is_finished(folder)):
            _train(run, name, folder, console)
        if is_first():
            _copy(folder, copy)
        synchronise("the copy is made")


def _copy(folder: str, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(copy, ignore_errors=True)
    # Its optimizer's state is of no use here, and twice as large as the rest.
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("optimizer", "tensorboard"))
    for step in list_steps(copy):
        leave_out(copy / CHECKPOINTS / str(step), "optimizer")


def _is_finished(folder: str | Path) -> bool:
    if not (Path(folder) / "run.json").exists():
        return False
    steps = list_steps(folder)
    return bool(steps) and steps[-1] == Run.load(folder).training.num_steps


def _train(run: Run, name: str, folder: str, console: Console) -> None:
    from zoo.recipes import RECIPES  # it imports the recipes, and they this
    from zoo.recipes.job import train_and_report

    recipe = RECIPES.get(Path(folder).name)
    if recipe is None:
        field = name.replace("-", "_")
        raise ValueError(
            f"task.{field} is {folder!r}, where no finished run is; train one first: "
            f"python train.py RECIPE --folder {folder}"
        )
    made = recipe()
    tokenizer = made.data.tokenizer
    console.rule(f"first the {name} of this run, by the recipe {Path(folder).name}", align="left")
    train_and_report(replace(made, folder=folder, data=replace(run.data, tokenizer=tokenizer)), console)
    console.rule(f"now {Path(run.folder).name}", align="left")


def open_companions(run: Run, dataset: Dataset) -> dict[str, Any]:
    """What a text-to-image task is bound to beside its data: `codec`, `judge` and `folder`.

    Raises:
        ValueError: no copy in the run's folder, or one that does not fit the model or the task.
    """
    assert isinstance(run.task, TextToImageConfig)
    folder, task = Path(run.folder), run.task
    codec = _open_palette(run, dataset) if task.image_tokens is None else open_image_tokens(folder / "image-tokens")
    _check_fit(run, codec)
    judge = None if task.judge is None else open_judge(folder / "judge", dataset)
    if judge is not None and judge.task.config.image_size != task.image_size:
        raise ValueError(
            f"task.image_size is {task.image_size} and the judge in {task.judge} reads "
            f"{judge.task.config.image_size}; give both the same, or task.judge none"
        )
    return {"codec": codec, "judge": judge, "folder": folder}


def open_image_tokens(folder: str | Path) -> LearnedTokens:
    """The image tokenizer that a run folder holds."""
    run = Run.load(folder)
    model = run.make_model()
    if not isinstance(model, ImageTokenizer):
        raise ValueError(f"{folder} holds no image tokenizer; give a folder of python train.py image-tokens-tiny")
    return LearnedTokens(model, load_params(folder)[0])


def open_judge(folder: str | Path, dataset: Dataset) -> Judge:
    """The reader of pictures that a run folder holds. `dataset` has the names of its classes."""
    run = Run.load(folder)
    task = run.task.bind(dataset, None, seed=run.training.seed, data=run.data)
    if not isinstance(task, PictureAttributes):
        raise ValueError(f"{folder} holds no judge; give a folder of python train.py picture-judge-tiny")
    return Judge(task, bind_apply(run.make_model()), load_params(folder)[0])


def _open_palette(run: Run, dataset: Dataset) -> PaletteTokens:
    """The colours in the run's folder, or those of the training pictures, put there."""
    assert isinstance(run.task, TextToImageConfig)
    path, size = Path(run.folder) / "palette.npy", run.task.image_size
    if not path.exists():
        source = dataset.split("train")
        places = np.linspace(0, len(source) - 1, min(len(source), _SAMPLED)).astype(int)
        pictures = [square(source[int(place)][run.data.image_key], size) for place in places]
        levels = as_pixels(np.stack(pictures).transpose(0, 2, 3, 1).reshape(-1, 3))
        # Different colours, each once, for most pixels are background; the commonest, its colour, is kept as it is.
        different, counts = np.unique(levels, axis=0, return_counts=True)
        found = fit_clusters(different, run.task.palette_size - 1, seed=run.training.seed)
        colours = np.concatenate([different[counts.argmax()][None], found])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, colours)
    return PaletteTokens(np.load(path), size)


def _check_fit(run: Run, codec: LearnedTokens | PaletteTokens) -> None:
    """ValueError where model, task and tokens do not fit together."""
    assert isinstance(run.task, TextToImageConfig)
    size = codec.model.config.image_size if isinstance(codec, LearnedTokens) else codec.image_size
    if size != run.task.image_size:
        raise ValueError(
            f"task.image_size is {run.task.image_size} and the image tokenizer's {size}; give both the same"
        )
    target = run.model.target_embedding
    for field, ours, theirs in (
        ("vocab_size", target.vocab_size, codec.num_codes + 1),
        ("positions.max_length", getattr(target.positions, "max_length", None), codec.num_tokens),
    ):
        if ours is not None and (ours < theirs if field.startswith("positions") else ours != theirs):
            raise ValueError(
                f"model.decoder_embedding.{field} is {ours}; pictures have {codec.num_tokens} tokens of "
                f"{codec.num_codes} kinds, and one more starts them: give {theirs}"
            )
