"""What a lead must know about annotators and labels: pure functions over tasks and rankings.

`report.quality_report` puts all of it together; `reliability.annotator_weights` weighs votes for `export`.
Figures are `figure.Figure`: a value with its interval and n, or the reason in words why there is none.
"""
