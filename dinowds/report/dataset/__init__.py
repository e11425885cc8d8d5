"""What is on the page of a dataset: facts as plain records, and the blocks that show them."""
