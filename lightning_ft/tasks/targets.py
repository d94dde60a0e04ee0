"""What all targets share."""

IGNORED = -100  # a place that neither loss nor metrics judge, as torch's cross_entropy has it
