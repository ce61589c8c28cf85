"""Looking into what was made: style banks, what styles do to features and predictions, and runs as one page.

pages   html, svg, charts: pieces of pages that hold everything themselves
banks   bank_looks -> bank_statistics, projection, nearest_prompts -> bank_map -> bank_view; bank_editing makes new ones
styles  preview_inputs -> style_preview -> preview_text, preview_picture
runs    run_folder, run_examples -> run_tables, confusion_view, label_pictures -> run_page
"""
