"""Training of the town's CLIPs on captioned crops."""
