"""TensorBoard: a folder for each row, and in it one for each seed, with the learning curves as scalars."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote

from freehold.errors import UsageError
from freehold.events import Event, Listener
from freehold.tracking.cell import Cell, cell_of, figures_of

if TYPE_CHECKING:
    from tensorboard.summary import Writer


def tensorboard_listener(folder: str) -> AbstractContextManager[Listener]:
    """Writes below `folder`, beside what is there; ModuleNotFoundError without TensorBoard."""
    import tensorboard.summary  # noqa: F401  (now rather than in the middle of a study)

    return _Folders(Path(folder))


class _Folders:
    """The writers of one study, each open until its cell is closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[Cell, Writer] = {}

    def __enter__(self) -> Listener:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"TensorBoard cannot write to {self._folder}: {error.strerror}.", hint="Name another folder."
            ) from error
        return self._hear

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /) -> None:
        for cell in list(self._writers):
            self._close(cell)

    def _hear(self, event: Event) -> None:
        if event.name == "round.evaluated":
            writer = self._writer(cell_of(event))
            for name, value in figures_of(event).items():
                writer.add_scalar(name, value, step=int(event.fields["round"]))
            writer.flush()
        elif event.name == "cell.closed":
            self._close(cell_of(event))

    def _writer(self, cell: Cell) -> Writer:
        from tensorboard.summary import Writer

        if cell not in self._writers:
            self._writers[cell] = Writer(str(self._folder / _file_name(cell.row) / f"seed-{cell.seed}"))
        return self._writers[cell]

    def _close(self, cell: Cell) -> None:
        if cell in self._writers:
            self._writers.pop(cell).close()


def _file_name(row: str) -> str:
    """The row's name as one folder: what has a meaning in a path is escaped as in a URL."""
    return quote(row, safe=" +").replace(".", "%2E") if set(row) <= {"."} else quote(row, safe=" +")
