"""The web app: pages for annotators and admins, REST API for trainers and workers. It never imports `trainer`."""
