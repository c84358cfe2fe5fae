"""What the pages share: style, figures, findings, words. In: JSON-able values. Out: HTML that needs nothing else."""
