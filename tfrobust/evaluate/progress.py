"""One live line: images done, accuracies so far, the running attack, time left."""

import sys
import time

WIDE = 120  # columns from which the name of the model, a bar and a clock find room
PAUSE = 60.0  # seconds between lines where there is no terminal


class Progress:
    """Shows the state of an evaluation: a live line on a terminal, else a line of log a minute.

    Args:
        shown: Bool.
        total: Number of images or None if unknown.
        title: What is evaluated.
        figure: What the second accuracy is called.
    """

    def __init__(self, shown, total, title, figure="robust"):
        self._bar, self._total, self._written, self._figure = None, total, None, figure
        if not shown:
            return
        import rich.console
        from rich import progress
        from rich.table import Column

        console = rich.console.Console()
        if not console.is_terminal:
            self._written = time.perf_counter()
            return
        whole = Column(no_wrap=True)
        more = (
            progress.TextColumn("{task.description}", markup=False, table_column=whole),
            progress.BarColumn(bar_width=24),
            progress.TimeElapsedColumn(),
        )
        self._bar = progress.Progress(
            *(more if console.width >= WIDE else ()),
            progress.TextColumn("{task.fields[figures]}", table_column=whole),
            progress.TimeRemainingColumn(),
            progress.TextColumn("left", table_column=whole),
            # What room there is, the rest cut off: a second line would flicker.
            progress.TextColumn(
                "{task.fields[detail]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=console,
            speed_estimate_period=1e6,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=total, figures="", detail="")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *unused):
        if self._bar:
            self._bar.stop()

    def update(self, done, clean, robust, detail=""):
        """`done` images (a fraction counts the current chunk), accuracies as shares or None."""
        if self._bar is None and self._written is None:
            return
        parts = [f"{int(done):,} / {self._total:,}" if self._total else f"{int(done):,} images"]
        if clean is not None:
            parts.append(f"clean {100 * clean:.1f} %")
        if robust is not None:
            parts.append(f"{self._figure} {100 * robust:.1f} %")
        if self._bar is None:
            if time.perf_counter() - self._written >= PAUSE:
                self._written = time.perf_counter()
                print(*parts, detail, sep="  ", file=sys.stderr, flush=True)
            return
        self._bar.update(self._task, completed=done, figures="  ".join(parts), detail=detail)
