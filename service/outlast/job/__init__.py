"""What all processes of a job share: spec, journal, heartbeat, logs and state machine."""
