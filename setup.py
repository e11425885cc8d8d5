from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["dinowds", "dinowds.*"]), "dinowds.cli", "dinowds.configs"])
