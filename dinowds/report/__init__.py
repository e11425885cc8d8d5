"""One page that shows a run or a dataset: a single HTML file that needs no network."""
