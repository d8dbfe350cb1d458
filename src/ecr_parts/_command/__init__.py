"""The command ``ecr-parts``."""
