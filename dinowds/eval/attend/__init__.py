"""Pictures of what a model looks at, for images, samples of a dataset, and whole regions."""
