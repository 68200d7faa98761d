"""``brpg compare``: does it help? Paired differences of trainings without and with the head, with their intervals."""
