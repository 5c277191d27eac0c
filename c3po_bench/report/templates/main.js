// Starts the page.
"use strict";

setUpTheme(redrawCharts);
setUpCharts();
setUpComparison();
setUpAblation();
setUpCopying();
setUpExplorer();
