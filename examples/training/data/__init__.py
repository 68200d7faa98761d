"""The demo's datasets: digit scenes, CamVid, or a directory of yours."""
