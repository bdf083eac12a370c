#include "file/decision.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "file/keys.h"

namespace gsb {

void Decision::probabilities(const float* logits, int classes, double* out) const {
    const double largest = *std::max_element(logits, logits + classes) / temperature;
    double sum = 0;
    for (int k = 0; k < classes; ++k) sum += out[k] = std::exp(logits[k] / temperature - largest);
    for (int k = 0; k < classes; ++k) out[k] /= sum;
}

double Decision::known_score(const float* logits, int classes) const {
    const double largest = *std::max_element(logits, logits + classes);
    if (score == Score::max_logit) return largest;
    double sum = 0;
    for (int k = 0; k < classes; ++k) sum += std::exp((logits[k] - largest) / temperature);
    return largest + temperature * std::log(sum);
}

Decision read_decision(const Json& json) {
    Decision decision;
    json.object("decision");
    const Json* unknown = json.find(schema::kUnknownKey);
    std::vector<const char*> names;
    for (const schema::Key& key : schema::kDecision) names.push_back(key.name);
    if (unknown) names.push_back(schema::kUnknownKey);
    check_names("decision", json, names.data(), names.size());
    for (const schema::Key& key : schema::kDecision) check_key(key, json.at(key.name));
    decision.temperature = json.at("temperature").number("temperature");
    if (!unknown) return decision;
    check_object(schema::kUnknownKey, *unknown, schema::kUnknown);
    decision.has_unknown = true;
    const std::string& score = unknown->at("score").text("score");
    decision.score = static_cast<Decision::Score>(
        std::find(std::begin(schema::kScore), std::end(schema::kScore), score) - std::begin(schema::kScore));
    decision.threshold = unknown->at("threshold").number("threshold");
    decision.false_alarm_rate = unknown->at("false_alarm_rate").number("false_alarm_rate");
    return decision;
}

}  // namespace gsb
