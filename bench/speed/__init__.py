"""What uncertainty costs: ratios measured in one run, each beside its target and its limit."""
