"""The audit log: who asked for what, and which images were shown; chained, so that gaps show."""
