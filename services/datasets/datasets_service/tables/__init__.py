"""CSV datasets: reading tables of any size, plugins, our own copy and slices of it."""
