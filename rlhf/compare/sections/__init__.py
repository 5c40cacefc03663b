"""The parts of a report, in the order in which a reader asks: each is a key of report.json and a section of the page.

A part is a module of this package with a template of the same name beside it. It measures what the others have
not (policies are loaded, judges asked: slow, kept in the run folder), builds its numbers from what was measured,
and views them for its template. What it cannot say it leaves out: then it is in neither file.
"""

from rlhf.compare.sections import agreement, cost, frontier, judging, lineage, quality, safety, standing
from rlhf.compare.sections.section import Section

__all__ = ["SECTIONS", "Section"]

SECTIONS: tuple[Section, ...] = (
    standing.SECTION,
    agreement.SECTION,
    judging.SECTION,
    frontier.SECTION,
    quality.SECTION,
    safety.SECTION,
    cost.SECTION,
    lineage.SECTION,
)
