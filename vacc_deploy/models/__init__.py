"""What is known of the models: the catalogue, ``config.json`` and ``config_vacc.json``."""
