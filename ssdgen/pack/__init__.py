"""What is stored beside the code: tuned records, templates, generated packages.  tune, emit -> files"""
