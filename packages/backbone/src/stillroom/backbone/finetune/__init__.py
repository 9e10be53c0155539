"""The life cycle of fine-tuning that the task packages share: settings, command line, runs, sweeps, tables."""
