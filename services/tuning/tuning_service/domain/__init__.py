"""Studies, trials and search spaces; the only place that knows which move is legal."""
