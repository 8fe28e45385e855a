"""``report.html``: finished runs of the bench side by side, in one file that needs nothing else.

``python -m mllm4d.bench.report RUN_FOLDER... --out report.html`` writes it, or ``write_report``.
"""

from __future__ import annotations

from mllm4d.bench.report.write import write_report

__all__ = ["write_report"]
