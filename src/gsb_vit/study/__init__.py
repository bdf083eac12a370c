"""Studies: recipes × seeds from one file, run once each, as tables with means, deviations and intervals."""
