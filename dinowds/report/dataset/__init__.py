"""The page of a dataset: facts as plain records, and the blocks that show them."""

from dinowds.report.dataset.build import dataset_page

__all__ = ["dataset_page"]
