"""The colours of every plot: this package, what it is compared with, and further series."""

OWN, TEACHER = "#178a6d", "#8a94a6"
SERIES = (OWN, "#c4622d", "#4f6bc4", "#a8479c", "#8a7a1f", "#5b6573", "#c43d4f", "#2f93b5")
