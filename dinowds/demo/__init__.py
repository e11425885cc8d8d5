"""The whole way on real photographs: cohort tars → shards → a small ViT → regions → a hierarchical ViT.

Sixteen photographs that ship with scikit-image are cut into grey patches of equal mean and contrast, so that neither
colour nor brightness tells them apart. The left 60 % of each photograph is for training, the right 40 % for the test;
the label of a patch, or of a region, is its photograph.
"""
