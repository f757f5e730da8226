"""Base policies that come with the suite, and the critics pretrained on them: data in vimpo/bases.

One folder per base policy, named by its digest, as `python -m vimpo pretrain` left it:
`vimpo/bases/<digest>/`, and `critic-<digest>/` in it. A study takes them with
`pretrain: {shipped: true}`. `python -m vimpo ship --config FILE --size NAME` puts a base policy of
a study there, with its critics.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from vimpo.config import ConfigError, Study
from vimpo.storage.files import write_atomic
from vimpo.storage.integrity import SUMS, read_sums

SHIPPED = Path(__file__).parents[1] / "bases"


def check_shipped(study: Study, folder: Path = SHIPPED) -> None:
    """Raise ConfigError if a study asks for a base policy that does not come with the suite."""
    if not study.pretrain.shipped:
        return
    for size in study.used_sizes():
        if study.sizes[size].pretrain_steps and not _of(study, size, folder).is_dir():
            raise ConfigError(
                f"pretrain.shipped: true, but no base policy like sizes.{size} comes with the "
                f"suite (digest {study.base_digest(size)}: its shape, task, pretraining and "
                "runtime); allowed: false, or what a shipped study says of them"
            )


def shipped_source(study: Study, size: str, folder: Path, shipped: Path = SHIPPED) -> Path | None:
    """What a study takes instead of making a base policy, or a critic of it; None: it makes it.

    folder: its place in the results.
    """
    source = _of(study, size, shipped) / folder.relative_to(study.base_folder(size))
    return source if study.pretrain.shipped and (source / SUMS).is_file() else None


def take_shipped(study: Study, size: str, folder: Path, shipped: Path = SHIPPED) -> bool:
    """Copy a base policy, or a critic of it, to its place in the results, if a study asks for it.

    folder: of the base policy, or of a critic in it. Returns whether it is there now. Its sums are
    written last, so that a folder that has them is complete.
    """
    source = shipped_source(study, size, folder, shipped)
    if source is not None:
        _copy(source, folder)
    return source is not None


def ship(study: Study, size: str, shipped: Path = SHIPPED) -> list[Path]:
    """Put the base policy of a size, with its critics, where :func:`take_shipped` finds it.

    Returns the folders that were written. Raises ConfigError if the base policy is not finished.
    """
    base, target = study.base_folder(size), _of(study, size, shipped)
    critics = [path.parent for path in sorted(base.glob(f"critic-*/{SUMS}"))]
    if not (base / SUMS).is_file():
        raise ConfigError(
            f"ship: '{base}' holds no finished base policy; allowed: after `python -m vimpo "
            f"pretrain --size {size}`"
        )
    made = {source: target / source.relative_to(base) for source in (base, *critics)}
    shutil.rmtree(target, ignore_errors=True)
    for source, place in made.items():
        _copy(source, place)
    return list(made.values())


def _of(study: Study, size: str, shipped: Path) -> Path:
    return shipped / study.base_digest(size)


def _copy(source: Path, target: Path) -> None:
    """What a run left in its folder, by its sums, which are copied last."""
    for name in read_sums(source / SUMS):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    write_atomic(target / SUMS, (source / SUMS).read_text(encoding="utf-8"))
