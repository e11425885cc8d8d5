"""From a dataset to its page."""

from __future__ import annotations

from dinowds.data.dataset import Dataset
from dinowds.data.summary import summarize
from dinowds.remote.urls import shown
from dinowds.report.dataset import counts, files
from dinowds.report.dataset.batch_effect import colour_section
from dinowds.report.dataset.columns import read_columns
from dinowds.report.dataset.duplicates import find_groups
from dinowds.report.dataset.images import read_images, sample_section, unreadable_notice, view_section
from dinowds.report.dataset.slides import count_slides
from dinowds.report.page import Block, Page, Section

NUM_IMAGES = 500
"""That are read for colours; some more for the labels."""
_TOP_DUPLICATES = 12


def dataset_page(location: str, num_images: int = NUM_IMAGES, seed: int = 0) -> Page:
    """What is in DATASET or DATASET:SUBSET.

    All counts come from the index alone. Colours and pictures are of a random sample; one that cannot be read is named
    on the page.

    Args:
        num_images: images, or regions, to read; spread evenly over the cohorts.
        seed: of the random sample and of the views.

    Raises:
        DatasetError: it cannot be opened, or its index cannot be read.
        StorageError: it lies remote and cannot be read.
    """
    dataset = Dataset.open(location)
    summary = summarize(dataset)
    columns = read_columns(dataset)
    duplicates = find_groups(columns, _TOP_DUPLICATES)
    slides = count_slides(columns)
    title = summary.name if summary.subset is None else f"{summary.name}:{summary.subset}"
    lead: list[Block] = [counts.head_facts(summary, duplicates)]
    sections: list[Section | None]
    if not summary.samples:
        return Page(title, f"No samples · {shown(location)}", [files.about_section(dataset, summary)], lead)
    sections = [
        counts.cohort_section(summary, columns),
        counts.slide_section(dataset, summary, columns, slides),
        counts.label_section(summary, columns),
    ]
    if summary.kind == "image":
        images = read_images(dataset, columns, num_images, seed)
        if (notice := unreadable_notice(images.colours.unreadable, images.wanted)) is not None:
            lead.append(notice)
        if images.rows:
            sections += [sample_section(images, summary), view_section(dataset, seed)]
            sections.append(colour_section(dataset, columns, images))
    else:
        from dinowds.report.dataset.grids import region_section  # takes torch

        sections.append(region_section(dataset, columns, num_images, seed))
    sections += [
        files.file_section(summary, columns),
        files.duplicate_section(dataset, duplicates),
        files.left_out_section(dataset, summary),
        files.about_section(dataset, summary),
    ]
    kind = "images" if summary.kind == "image" else "regions"
    subtitle = f"{summary.samples:,} {kind} · {shown(location)}"
    return Page(title, subtitle, [section for section in sections if section is not None], lead)
