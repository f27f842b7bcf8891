// Shows the API's description. No other site is asked, to validate it or for anything else.
"use strict";

SwaggerUIBundle({
  url: document.getElementById("description").dataset.address,
  dom_id: "#description",
  deepLinking: true,
  validatorUrl: null,
  persistAuthorization: false,
});
