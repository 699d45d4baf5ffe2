"""The Compare tab: every mode measured in fresh processes, and two modes raced on the running deployment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as widgets

from kit.comparison import Comparison
from kit.settings import MODES
from widgets.html import shortened
from widgets.image import image
from widgets.progress import Progress
from widgets.race import Lap, RacePlot, summary


class CompareTab:
    """Widgets only; what the buttons do is given by the panel, and each only enqueues."""

    def __init__(
        self,
        compare: Callable[[], object],
        cancel_compare: Callable[[], object],
        use_best: Callable[[], object],
        race: Callable[[], object],
        cancel_race: Callable[[], object],
    ) -> None:
        self.modes = {
            mode: widgets.Checkbox(value=True, description=mode, indent=False, layout={"width": "110px"})
            for mode in MODES
        }
        self.compare = widgets.Button(description="Compare modes")
        self.use = widgets.Button(description="Use this mode", disabled=True)
        self.compare_progress = Progress("comparison", cancel_compare)
        self.result = widgets.HTML("", layout={"max_width": "100%", "overflow": "auto"})
        self.first, self.second = (
            widgets.Dropdown(options=list(MODES), value=mode, description=words, layout={"width": "180px"})
            for words, mode in (("Race", "large"), ("against", "shared"))
        )
        self.seconds = widgets.FloatText(
            value=8, step=1, description="Seconds each", style={"description_width": "100px"}, layout={"width": "190px"}
        )
        self.race = widgets.Button(description="Race")
        self.race_progress = Progress("race", cancel_race)
        self.race_picture = image("kit-race")
        self.race_picture.layout.display = "none"
        self.race_words = widgets.HTML("")
        self._plot = RacePlot()
        for button, action in ((self.compare, compare), (self.use, use_best), (self.race, race)):
            button.on_click(lambda _, action=action: action())
        hint = "Measures each mode in fresh processes of its own, beside the deployment; the load rests meanwhile."
        self.box = widgets.VBox(
            [
                widgets.HTML(f'<div class="kit-hint">{hint}</div>'),
                widgets.HBox([*self.modes.values()], layout={"flex_flow": "row wrap"}),
                widgets.HBox([self.compare, self.use]),
                self.compare_progress.box,
                self.result,
                widgets.HTML(
                    '<hr><div class="kit-hint">Serves the same examples in two modes in turn, here, as fast as they '
                    "are answered; then goes back to the mode before.</div>"
                ),
                widgets.HBox([self.first, self.second, self.seconds, self.race], layout={"flex_flow": "row wrap"}),
                self.race_progress.box,
                self.race_picture,
                self.race_words,
            ]
        )
        self.box.add_class("kit-compare")
        self.result.add_class("kit-comparison")
        self.race_words.add_class("kit-race-words")

    @property
    def chosen_modes(self) -> list[str]:
        """The modes that are ticked."""
        return [mode for mode, box in self.modes.items() if box.value]

    def show(self, comparison: Comparison) -> None:
        """Show the table and picture."""
        bundle = comparison._repr_mimebundle_()
        self.result.value = bundle["text/html"]
        best = comparison.best()
        self.use.disabled = best.mode is None
        self.use.tooltip = shortened(str(best), 300)

    def show_race(self, laps: Sequence[Lap]) -> None:
        """Show both curves and their numbers."""
        self.race_picture.value = self._plot.draw(laps)
        self.race_picture.layout.display = "block"
        self.race_words.value = f'<pre class="kit-race-text">{summary(laps)}</pre>'
