"""Where a training reports to, beside its own log: one file per tracker."""
