"""Making prototypes of what the queues hold, and keeping them."""
