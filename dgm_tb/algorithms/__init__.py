"""Pure functions: arrays in, arrays out. Each module uses one array library; import them one by one."""
