"""What every other package is built on. It knows nothing of ECR."""
