"""report.html: one file that opens from disk and asks no server for anything.

Model text reaches the page in two ways only: through jinja's autoescape, and as JSON that the script
writes with `textContent`. A content security policy lets no other script run.
"""

from rlhf.compare.page.measures import charts
from rlhf.compare.page.render import render_page
from rlhf.compare.page.side_by_side import examples

__all__ = ["charts", "examples", "render_page"]
