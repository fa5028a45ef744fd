"""The study of anomalies: labelled tables, scores, and what is reported."""
