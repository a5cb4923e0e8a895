"""One live line: images done, accuracies so far, the running attack, time left."""


class Progress:
    """Shows the state of an evaluation; silent when switched off or not on a terminal.

    Args:
        shown: Bool.
        total: Number of images or None if unknown.
        title: What is evaluated.
    """

    def __init__(self, shown, total, title):
        self._bar, self._total = None, total
        if not shown:
            return
        import rich.console
        import rich.progress

        console = rich.console.Console()
        if not console.is_terminal:
            return
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[line]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            speed_estimate_period=1e6,
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total, line="")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *unused):
        if self._bar:
            self._bar.stop()

    def update(self, done, clean, robust, detail=""):
        """`done` images (a fraction counts the current chunk), accuracies as shares or None."""
        if not self._bar:
            return
        parts = [f"{int(done):,} / {self._total:,}" if self._total else f"{int(done):,} images"]
        if clean is not None:
            parts.append(f"clean {100 * clean:.1f} %")
        if robust is not None:
            parts.append(f"robust {100 * robust:.1f} %")
        self._bar.update(self._task, completed=done, line="  ".join([*parts, detail]))
