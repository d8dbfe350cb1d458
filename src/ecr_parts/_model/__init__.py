"""Parts, layers, limits, sessions, and how an upload follows ECR: no network, disk or threads."""
