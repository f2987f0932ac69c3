"""What every process of a job shares: spec, journal, heartbeat, logs and the state machine."""
