"""One room per operation; see docs/design.md section 2."""
