"""Pictures of the budget."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from wardround.web.charts import Curve, line_chart
from wardround.web.escaped import escape
from wardround_client.privacy.ledger import Entry

WIDE, HIGH = 520, 34


def budget_chart(entries: Sequence[Entry], limit: float) -> Markup:
    """Epsilon of the cohort after each entry of the ledger, below the line that it may not pass."""
    if not entries:
        return Markup('<p class="empty">No answer has been given yet.</p>')
    points = [(0.0, 0.0), *((float(place), float(each.body["epsilon_after"])) for place, each in enumerate(entries, 1))]
    return line_chart(
        [Curve("epsilon spent", points)],
        title="Epsilon spent, by entry of the ledger",
        x_label="entry of the ledger",
        y_label="epsilon",
        y_range=(0.0, max(limit, points[-1][1])),
        marks=[(limit, "the budget")],
        height=220,
    )


def budget_bar(before: float, after: float, limit: float) -> Markup:
    """What is spent, what this would add, and what is left; what would pass the budget stands in another colour."""
    end = max(limit, after, 1e-9)
    title = f"Budget: epsilon {before:.3g} spent, {after:.3g} with this, of {limit:g}"
    pieces = [("part", 0.0, min(before, limit)), ("part new", before, min(after, limit))]
    pieces += [("part left", after, limit)] if after < limit else [("part over", max(limit, before), after)]
    drawn = "".join(
        f'<rect class="{style}" x="{WIDE * low / end:.1f}" y="0" width="{WIDE * (high - low) / end:.1f}" '
        f'height="{HIGH}"/>'
        for style, low, high in pieces
        if high > low
    )
    return Markup(
        f'<svg class="budget-bar" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{drawn}</svg>"
    )
